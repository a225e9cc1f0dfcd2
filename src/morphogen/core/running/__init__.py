"""Work beside other work: threads of libraries, loops with threads beside them."""
