"""The light of the microscope, estimated and corrected."""
