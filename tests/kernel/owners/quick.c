/* Actors of the matrix that live for two milliseconds, were executed with a listening socket, or use io_uring(7).
 *
 *     quick tcp|udp|ring|ring-async|ring-registered|ring-udp ADDRESS PORT TRUTH CASE
 *     quick serve address|null|ring SOCKET TRUTH CASE PLACE PORT HOLDER
 *
 * ring-registered gives the socket to the ring and closes its descriptor: a worker of the kernel takes it down then.
 * TRUTH is the descriptor of the file of ends; see truth.py for both its lines and the first message of a client. A
 * server keeps its connections until it ends, and never asks the kernel who its peer is.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

enum { HOLD = 1200000 }; /* microseconds */

struct ring {
	int fd;
	unsigned flags; /* of each request */
	unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
};

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* The pid where /proc was mounted, outside of later namespaces of pids. */
static int host_pid(void)
{
	char text[32] = "";

	return readlink("/proc/self", text, sizeof text - 1) > 0 ? atoi(text) : getpid();
}

static void truth(int file, const char *name, const char *end, int proto, const char *local, int lport,
		  const char *remote, int rport, const char *place, int holder)
{
	char line[768], comm[17] = "", held[16] = "";
	struct timeval now;
	int n;

	prctl(PR_GET_NAME, comm);
	gettimeofday(&now, NULL);
	if (holder)
		snprintf(held, sizeof held, "%d", holder);
	n = snprintf(line, sizeof line,
		     "{\"case\": \"%s\", \"end\": \"%s\", \"proto\": %d, \"local\": \"%s\", \"lport\": %d, "
		     "\"remote\": \"%s\", \"rport\": %d, \"pid\": %d, \"holders\": [%s], \"comms\": [\"%s\"], "
		     "\"uid\": %d, \"place\": \"%s\", \"time\": %ld.%06ld}\n",
		     name, end, proto, local, lport, remote, rport, host_pid(), held, comm, (int)geteuid(), place,
		     (long)now.tv_sec, (long)now.tv_usec);
	if (write(file, line, n) != n)
		die("truth");
}

/* -------------------------------------------------------------- io_uring: one request at a time */

static void *map(int fd, size_t size, off_t where)
{
	void *found = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, where);

	if (found == MAP_FAILED)
		die("mmap");
	return found;
}

static struct ring ring_open(unsigned flags)
{
	struct io_uring_params p = {0};
	struct ring r = {.flags = flags};
	char *sq, *cq;

	r.fd = syscall(SYS_io_uring_setup, 4, &p);
	if (r.fd < 0)
		die("io_uring_setup");
	sq = map(r.fd, p.sq_off.array + p.sq_entries * sizeof(unsigned), IORING_OFF_SQ_RING);
	cq = map(r.fd, p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe), IORING_OFF_CQ_RING);
	r.sqes = map(r.fd, p.sq_entries * sizeof(struct io_uring_sqe), IORING_OFF_SQES);
	r.sq_tail = (unsigned *)(sq + p.sq_off.tail);
	r.sq_mask = (unsigned *)(sq + p.sq_off.ring_mask);
	r.sq_array = (unsigned *)(sq + p.sq_off.array);
	r.cq_head = (unsigned *)(cq + p.cq_off.head);
	r.cq_tail = (unsigned *)(cq + p.cq_off.tail);
	r.cq_mask = (unsigned *)(cq + p.cq_off.ring_mask);
	r.cqes = (struct io_uring_cqe *)(cq + p.cq_off.cqes);
	return r;
}

/* From now on the ring alone has the socket; requests name it by 0. */
static int ring_keep(struct ring *r, int fd)
{
	if (syscall(SYS_io_uring_register, r->fd, IORING_REGISTER_FILES, &fd, 1))
		die("io_uring_register");
	close(fd);
	r->flags |= IOSQE_FIXED_FILE;
	return 0;
}

static int ring_do(struct ring *r, int op, int fd, const void *address, unsigned length, uint64_t offset)
{
	unsigned tail = *r->sq_tail, at = tail & *r->sq_mask, head;
	struct io_uring_sqe *sqe = &r->sqes[at];
	int result;

	memset(sqe, 0, sizeof *sqe);
	sqe->opcode = op;
	sqe->flags = r->flags;
	sqe->fd = fd;
	sqe->addr = (uintptr_t)address;
	sqe->len = length;
	sqe->off = offset;
	r->sq_array[at] = at;
	__atomic_store_n(r->sq_tail, tail + 1, __ATOMIC_RELEASE);
	while (syscall(SYS_io_uring_enter, r->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		if (errno != EINTR)
			die("io_uring_enter");
	head = *r->cq_head;
	while (head == __atomic_load_n(r->cq_tail, __ATOMIC_ACQUIRE))
		syscall(SYS_io_uring_enter, r->fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
	result = r->cqes[head & *r->cq_mask].res;
	__atomic_store_n(r->cq_head, head + 1, __ATOMIC_RELEASE);
	return result;
}

/* -------------------------------------------------------------- clients */

static socklen_t address_of(struct sockaddr_storage *out, const char *text, int port)
{
	struct sockaddr_in *four = (void *)out;
	struct sockaddr_in6 *six = (void *)out;

	memset(out, 0, sizeof *out);
	if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
		four->sin_family = AF_INET;
		four->sin_port = htons(port);
		return sizeof *four;
	}
	six->sin6_family = AF_INET6;
	six->sin6_port = htons(port);
	if (inet_pton(AF_INET6, text, &six->sin6_addr) != 1)
		die("address");
	return sizeof *six;
}

static int own_end(int fd, char text[INET6_ADDRSTRLEN])
{
	struct sockaddr_storage own;
	struct sockaddr_in *four = (void *)&own;
	struct sockaddr_in6 *six = (void *)&own;
	socklen_t length = sizeof own;

	if (getsockname(fd, (void *)&own, &length))
		die("getsockname");
	if (own.ss_family == AF_INET)
		inet_ntop(AF_INET, &four->sin_addr, text, INET6_ADDRSTRLEN);
	else
		inet_ntop(AF_INET6, &six->sin6_addr, text, INET6_ADDRSTRLEN);
	return ntohs(own.ss_family == AF_INET ? four->sin_port : six->sin6_port);
}

static int client(const char *how, const char *to, int port, int file, const char *name)
{
	int udp = strstr(how, "udp") != NULL, ringed = !strncmp(how, "ring", 4), fd, n, lport;
	struct sockaddr_storage there;
	socklen_t length = address_of(&there, to, port);
	char hello[256], own[INET6_ADDRSTRLEN], answer[16];
	struct ring r;

	if (ringed)
		r = ring_open(strstr(how, "async") ? IOSQE_ASYNC : 0);
	fd = socket(there.ss_family, udp ? SOCK_DGRAM : SOCK_STREAM, 0);
	n = ringed ? ring_do(&r, IORING_OP_CONNECT, fd, &there, 0, length) : connect(fd, (void *)&there, length);
	if (n < 0)
		die("connect");
	lport = own_end(fd, own);
	if (strstr(how, "registered"))
		fd = ring_keep(&r, fd);
	n = snprintf(hello, sizeof hello, "%s %s %d %s\n", name, own, lport, to);
	if ((ringed ? ring_do(&r, IORING_OP_SEND, fd, hello, n, 0) : write(fd, hello, n)) != n)
		die("send");
	truth(file, name, "client", udp ? IPPROTO_UDP : IPPROTO_TCP, own, lport, to, port, "host", 0);
	if (ringed) {
		if (ring_do(&r, IORING_OP_RECV, fd, answer, sizeof answer, 0) <= 0)
			die("recv");
		usleep(HOLD);
	}
	return 0;
}

/* -------------------------------------------------------------- servers */

static void serve(const char *how, int listener, int file, const char *name, const char *place, int port, int holder)
{
	int ringed = !strcmp(how, "ring");
	struct ring r;

	if (ringed)
		r = ring_open(0);
	for (;;) {
		struct sockaddr_storage peer;
		socklen_t length = sizeof peer;
		char text[256], its_case[64], its[64], to[64];
		int fd, n, rport;

		if (ringed)
			fd = ring_do(&r, IORING_OP_ACCEPT, listener, NULL, 0, 0);
		else if (!strcmp(how, "null"))
			fd = accept(listener, NULL, NULL);
		else
			fd = accept(listener, (void *)&peer, &length);
		if (fd < 0)
			die("accept");
		n = ringed ? ring_do(&r, IORING_OP_RECV, fd, text, sizeof text - 1, 0) : read(fd, text, sizeof text - 1);
		text[n > 0 ? n : 0] = 0;
		if (sscanf(text, "%63s %63s %d %63s", its_case, its, &rport, to) == 4)
			truth(file, name, "server", IPPROTO_TCP, to, port, its, rport, place, holder);
		if ((ringed ? ring_do(&r, IORING_OP_SEND, fd, "ok\n", 3, 0) : write(fd, "ok\n", 3)) < 0)
			continue;
	}
}

int main(int count, char **words)
{
	if (count == 6)
		return client(words[1], words[2], atoi(words[3]), atoi(words[4]), words[5]);
	if (count == 9 && !strcmp(words[1], "serve"))
		serve(words[2], atoi(words[3]), atoi(words[4]), words[5], words[6], atoi(words[7]), atoi(words[8]));
	fprintf(stderr, "usage: see the source\n");
	return 2;
}
