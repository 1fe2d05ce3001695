// In front of server-queue.cpp, server.cpp and server-models.cpp: serve.cpp has ours.
#pragma once

// The weights are loaded, and the server listens.
void server_is_ready();

// A port for the process of a model; upstream's way, if ours has none.
int port_for_model(int (*upstreams)());
