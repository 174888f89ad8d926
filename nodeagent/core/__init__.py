"""Pure core of the agent: protocol sessions, snapshots, schedules."""
