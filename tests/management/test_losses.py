"""``resyncsequences`` on databases that have lost what their models need."""
