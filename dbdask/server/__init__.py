"""The parameter server: shards as Dask actors, and everything that keeps them right."""
