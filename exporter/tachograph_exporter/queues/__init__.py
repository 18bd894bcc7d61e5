"""How many messages wait in the queues of engines, and since when: asked of their brokers."""
