"""Faults of all kinds while executions, spans and scripts are recorded, and an oracle of what was acknowledged.

python -m tests.chaos --seconds 600 --database sqlite
python -m tests.chaos --seconds 600 --database postgresql
"""
