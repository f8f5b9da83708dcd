"""Which implementation an op runs, and the checks that launchers share."""
