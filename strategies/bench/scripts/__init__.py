"""What a user would write instead: plain scripts that ``protocl bench script`` is held to."""
