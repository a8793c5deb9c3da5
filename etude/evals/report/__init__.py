"""The parts of a run's page: a record of the run, markup, charts, sections, style."""
