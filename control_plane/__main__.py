"""`python -m control_plane` is `tidewire`."""

from control_plane.cli import main

if __name__ == "__main__":
    main()
