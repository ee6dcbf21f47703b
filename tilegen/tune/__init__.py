"""The tuner: MetaSchedule's search, wrapped so that only right and reproducible winners are recorded."""
