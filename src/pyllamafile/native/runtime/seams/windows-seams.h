// Included on Windows before those files of upstream's that have their own ways with the command
// line and with Ctrl-C.
#pragma once

// clang-format off
#include <winsock2.h>
#include <windows.h>
#include <shellapi.h>
// clang-format on

// common/arg.cpp reads the command line of the process again, and takes it for the arguments
// that it was called with if it has as many words.
#define CommandLineToArgvW(line, count) nullptr

// The server waits on Ctrl-C until every client has had its answer; serve.cpp doesn't.
void take_over_ctrl_c(PHANDLER_ROUTINE upstreams);
#define SetConsoleCtrlHandler(handler, add) take_over_ctrl_c(handler)
