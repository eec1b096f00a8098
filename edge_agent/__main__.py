"""`python -m edge_agent` is `tidewire-agent`."""

from edge_agent.cli import main

if __name__ == "__main__":
    main()
