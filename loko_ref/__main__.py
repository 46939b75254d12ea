"""``python -m loko_ref`` is the ``loko-ref`` command."""

from loko_ref.cli import main

if __name__ == "__main__":
    main()
