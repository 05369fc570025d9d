"""Entry point of ``python -m rwml_lightning``."""

from rwml_lightning.cli import main

if __name__ == "__main__":
    main()
