// In front of server.cpp: web/chats-routes.cpp adds the conversations that the web GUI keeps.
#pragma once

#include "server-http.h"

void chats_routes(const server_http_context & http);
