"""Alarms: aggregates that rows enter and leave, conditions over them, and the state machine of incidents."""
