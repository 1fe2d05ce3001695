// Whose program is at the other end of a connection.
#pragma once

#include <string>

// Whether a connection from this address and port of this machine to our port is of a program of
// another user than the one who runs this, root aside. Linux alone can tell: elsewhere nobody is
// another one.
bool peer_is_another_user(const std::string & address, int port, int own_port);
