"""What an HNC step costs: cases, steps to time, measurements, and the table of them."""
