"""HyperCode core: login, missions, chat."""
