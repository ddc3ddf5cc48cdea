"""Averaging of replicas without a leader: who takes part follows from the DHT, what counts from everybody's word."""
