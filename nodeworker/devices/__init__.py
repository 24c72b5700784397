"""The devices that pods were given, and what networks and plugins are told of them."""
