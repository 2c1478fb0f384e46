"""From a builder to shards: what is to be done, one shard, many of them in processes or by Beam, and the reckoning."""
