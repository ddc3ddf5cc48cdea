"""What a node tells an MQTT broker, for dashboards and home automation; optional, and never in the way of the node."""
