"""``python -m thalweg``."""

from thalweg.commands.main import main

if __name__ == "__main__":
    main()
