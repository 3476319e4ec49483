"""The open world: know what is unknown, group it into categories, agree on them by addition."""
