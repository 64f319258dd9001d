"""Which version leads: the canary, the scores of a version, the gate, and the record of what it decided."""
