"""The schedule of measurements, the session that measures, and `Monitor`."""
