"""``python -m tachograph.exporter`` is the ``tachograph`` command."""

from tachograph.exporter import main

main()
