"""The hands: each observes its part of the world and carries out one step at a time. They do not know each other."""
