"""Methods that train for an open world: several prototypes a class, and classes without labels."""
