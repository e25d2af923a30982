"""Who takes part: certificates, signatures, rosters and registration."""
