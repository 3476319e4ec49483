"""Methods that estimate second moments from the spread of clients' class means."""
