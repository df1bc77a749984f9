"""The parts that run on workers: shards of the parameter server, replicas, their context."""
