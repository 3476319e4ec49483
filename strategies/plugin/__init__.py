"""The plugin that maintains a prototype memory while any strategy trains, and its parts."""
