"""Ways of answering a query. One file a kind (`embedding`), and the steps they share."""
