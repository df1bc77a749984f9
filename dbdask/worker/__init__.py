"""What runs on workers: shards of the parameter server, replicas, and what they share there."""
