"""When to measure, and what becomes of a measurement: schedule, session, `Monitor`."""
