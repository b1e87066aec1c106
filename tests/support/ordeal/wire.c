/* A bad wire: delays, loses, doubles and reorders the packets that are routed into it.
 *
 *     wire DEVICE OUT DELAY_US JITTER_US LOST_PERMILLE TWICE_PERMILLE SEED
 *
 * Runs inside the network namespace whose packets it carries. It makes the tunnel DEVICE, says
 * "ready", and sends what comes out of it on through OUT when its time has come. With the program
 * the device goes, and with the device the routes: nothing is left to heal. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <netinet/ip.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PACKETS_MAX 8192
#define BYTES_MAX 2048

struct packet {
    int64_t due;
    size_t bytes;
    unsigned char data[BYTES_MAX];
};

/* A heap, the earliest packet first. */
static struct packet *waiting[PACKETS_MAX];
static size_t count;
static uint64_t chance;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* A number below `bound` (xorshift). */
static uint64_t below(uint64_t bound) {
    chance ^= chance << 13;
    chance ^= chance >> 7;
    chance ^= chance << 17;
    return bound == 0 ? 0 : chance % bound;
}

static void push(const unsigned char *data, size_t bytes, int64_t due) {
    if (count == PACKETS_MAX)
        return; /* A full queue loses packets, as a router does. */
    struct packet *packet = malloc(sizeof *packet);
    if (packet == NULL)
        return;
    packet->due = due;
    packet->bytes = bytes;
    memcpy(packet->data, data, bytes);
    size_t at = count++;
    while (at > 0 && waiting[(at - 1) / 2]->due > due) {
        waiting[at] = waiting[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    waiting[at] = packet;
}

static struct packet *pop(void) {
    struct packet *first = waiting[0], *last = waiting[--count];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= count)
            break;
        if (child + 1 < count && waiting[child + 1]->due < waiting[child]->due)
            child++;
        if (waiting[child]->due >= last->due)
            break;
        waiting[at] = waiting[child];
        at = child;
    }
    if (count > 0)
        waiting[at] = last;
    return first;
}

static int open_tunnel(const char *name) {
    int tunnel = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (tunnel < 0)
        fail("open /dev/net/tun");
    struct ifreq request;
    memset(&request, 0, sizeof request);
    request.ifr_flags = IFF_TUN | IFF_NO_PI;
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (ioctl(tunnel, TUNSETIFF, &request) < 0)
        fail("make the tunnel");
    return tunnel;
}

static int open_out(const char *name) {
    int out = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW);
    if (out < 0)
        fail("open a raw socket");
    if (setsockopt(out, SOL_SOCKET, SO_BINDTODEVICE, name, (socklen_t)strlen(name) + 1) < 0)
        fail("bind to the device");
    return out;
}

static void send_on(int out, const struct packet *packet) {
    const struct iphdr *head = (const struct iphdr *)packet->data;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr = {head->daddr}};
    /* What cannot be sent is lost: this is a wire. */
    (void)!sendto(out, packet->data, packet->bytes, 0, (struct sockaddr *)&to, sizeof to);
}

int main(int argc, char **argv) {
    if (argc != 8) {
        fprintf(stderr, "usage: wire DEVICE OUT DELAY_US JITTER_US LOST TWICE SEED\n");
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int64_t delay = atoll(argv[3]) * 1000;
    uint64_t jitter = strtoull(argv[4], NULL, 10) * 1000;
    uint64_t lost = strtoull(argv[5], NULL, 10), twice = strtoull(argv[6], NULL, 10);
    chance = strtoull(argv[7], NULL, 10) | 1;
    int tunnel = open_tunnel(argv[1]), out = open_out(argv[2]);
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        int64_t now = now_ns();
        while (count > 0 && waiting[0]->due <= now) {
            struct packet *packet = pop();
            send_on(out, packet);
            free(packet);
        }
        struct timespec pause = {1, 0};
        if (count > 0 && waiting[0]->due - now < 1000000000LL)
            pause = (struct timespec){0, waiting[0]->due - now};
        struct pollfd ready = {.fd = tunnel, .events = POLLIN};
        if (ppoll(&ready, 1, &pause, NULL) <= 0)
            continue;
        unsigned char data[BYTES_MAX];
        ssize_t bytes;
        while ((bytes = read(tunnel, data, sizeof data)) > 0) {
            if (data[0] >> 4 != 4 || below(1000) < lost)
                continue;
            int64_t due = now_ns() + delay;
            push(data, (size_t)bytes, due + (int64_t)below(jitter));
            if (below(1000) < twice)
                push(data, (size_t)bytes, due + (int64_t)below(jitter));
        }
    }
}
