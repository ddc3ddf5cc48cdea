"""How a node reaches its peers: one interface, hivemind's libp2p behind it, and an in-memory fake."""
