"""The reference app: a federation under attack, every setting a run-config key."""
