"""``python -m tachograph_exporter`` is the ``tachograph`` command."""

from tachograph_exporter import main

main()
