// Prints the QR code of its argument.
#include "qr.h"

#include <cstdio>

int main(int, char ** argv) {
    fputs(qr_code(argv[1]).c_str(), stdout);
}
