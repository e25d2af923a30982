"""The growth of cost with clients, cohort and parameters."""
