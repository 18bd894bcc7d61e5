"""A run as one HTML file that opens without a service: `reading` collects what is known of it, `document` writes it."""
