"""The fixed samples on which a training is measured, and how they are read from a user's data."""
