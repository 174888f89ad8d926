"""The command line of Gatehouse: inject offline, explain, check, and show identities."""
