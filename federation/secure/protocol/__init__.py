"""The parties of a secure sum as pure state machines: no messages, no files, no clock."""
