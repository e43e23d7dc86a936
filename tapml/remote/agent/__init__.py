"""The agent, which offers the platforms of the machine it runs on; it needs neither torch nor TVM."""
