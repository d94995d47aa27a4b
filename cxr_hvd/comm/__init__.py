"""Ranks that work together: sites and roles, collectives, agreement, status and watchdog."""
