# Runs many commands on a host and answers with one stream of frames. rigup/ssh/batch.py sends it and reads the frames.
#
# Perl, because perl-base is essential on Debian and Ubuntu (a bare host has no Python), and because it can do what a
# shell cannot: keep stdout, stderr and exit code of each command apart, byte for byte, without files on the host.
#
# On standard input:   "MARK LIMIT SLOTS CAP\n", then for each command "INDEX SUDO LENGTH LENGTH\n" SHELL COMMAND
# On standard output:  for each command "MARK INDEX STATUS LENGTH LENGTH\n" STDOUT STDERR, in the order in which they end
# STATUS is the exit code as a shell counts it (128 + signal), or "slow" (killed after LIMIT seconds), or "big" (more
# than CAP bytes). SLOTS commands run at a time. Those with SUDO go through one single sudo, to this program again, and
# through the words @clean, since sudo brings an environment of its own.
use strict;
use warnings;
use POSIX ();

our ($boot, $program, @clean);
binmode(STDIN);
binmode(STDOUT);
$SIG{PIPE} = 'DEFAULT';

my ($mark, $limit, $slots, $cap) = split(' ', scalar(<STDIN>));
my (@queue, @elevated);
while (defined(my $head = <STDIN>)) {
    my ($index, $sudo, $shell_length, $command_length) = split(' ', $head);
    my ($shell, $command) = (take($shell_length), take($command_length));
    if ($sudo) { push(@elevated, "$index 0 $shell_length $command_length\n$shell$command") }
    else       { push(@queue, {index => $index, argv => [$shell, '-c', $command]}) }
}
if (@elevated) {
    my $stdin = join('', $program, "$mark $limit $slots $cap\n", @elevated);
    my @again = ('perl', '-e', $boot, length($program), $boot, @clean);
    unshift(@queue, {argv => ['sudo', '-H', '-n', @clean, @again], stdin => $stdin});
}

my %running;    # process id => job
while (@queue || %running) {
    launch(shift(@queue)) while (@queue && keys(%running) < $slots);
    listen_once();
}
exit(0);

sub take {
    my ($length) = @_;
    my $bytes = '';
    return $bytes if (!$length);
    read(STDIN, $bytes, $length) == $length or exit(1);
    return $bytes;
}

sub launch {
    my ($job) = @_;
    pipe(my $out, my $out_end) && pipe(my $err, my $err_end) && pipe(my $in_end, my $in) or die("pipe: $!");
    my $pid = fork();
    die("fork: $!") if (!defined($pid));
    if (!$pid) {
        POSIX::setpgid(0, 0);
        POSIX::dup2(fileno($in_end), 0);
        POSIX::dup2(fileno($out_end), 1);
        POSIX::dup2(fileno($err_end), 2);
        no warnings 'exec';
        exec({$job->{argv}[0]} @{$job->{argv}}) or POSIX::_exit(127);
    }
    close($_) for ($out_end, $err_end, $in_end);
    if (defined($job->{stdin})) {
        # A sudo that needs a password exits before it has read this.
        local $SIG{PIPE} = 'IGNORE';
        syswrite($in, $job->{stdin});
    }
    close($in);
    # The relaying program has no limit of its own: each of its commands has one.
    $job->{deadline} = defined($job->{stdin}) ? undef : time() + $limit + 1;
    $job->{open} = {out => $out, err => $err};
    $job->{got}  = {out => '', err => ''};
    $running{$pid} = $job;
}

# Waits for output or a deadline, and handles it.
sub listen_once {
    my ($set, $wait) = ('', undef);
    for my $job (values(%running)) {
        vec($set, fileno($_), 1) = 1 for (values(%{$job->{open}}));
        next if (!defined($job->{deadline}));
        my $left = $job->{deadline} - time();
        $left = 0 if ($left < 0);
        $wait = $left if (!defined($wait) || $left < $wait);
    }
    my $count = select(my $ready = $set, undef, undef, $wait);
    $ready = '' if ($count <= 0);
    for my $pid (keys(%running)) {
        my $job = $running{$pid};
        for my $name (keys(%{$job->{open}})) {
            my $handle = $job->{open}{$name};
            next if (!vec($ready, fileno($handle), 1));
            my $read = sysread($handle, $job->{got}{$name}, 65536, length($job->{got}{$name}));
            delete($job->{open}{$name}) if (!$read);
        }
        pass_on($job) if (defined($job->{stdin}));
        if (!%{$job->{open}}) { finish($pid, $job, undef) }
        elsif (defined($job->{deadline}) && time() >= $job->{deadline}) { finish($pid, $job, 'slow') }
        elsif (!defined($job->{stdin}) && length($job->{got}{out}) + length($job->{got}{err}) > $cap) {
            finish($pid, $job, 'big');
        }
    }
}

sub finish {
    my ($pid, $job, $status) = @_;
    delete($running{$pid});
    if (!defined($status) && defined($job->{deadline})) {
        # It has closed its output and may still run.
        my $left = $job->{deadline} - time();
        local $SIG{ALRM} = sub { kill('KILL', -$pid); $status = 'slow' };
        alarm($left > 1 ? $left : 1);
        # An alarm ends the first wait; the second one collects what it killed.
        waitpid($pid, 0) == $pid or waitpid($pid, 0);
        alarm(0);
    }
    else {
        kill('KILL', -$pid) if (defined($status));
        # Not waited for: what belongs to another user cannot be killed from here.
        waitpid($pid, defined($status) ? POSIX::WNOHANG() : 0);
    }
    return if (defined($job->{stdin}));
    if (!defined($status)) {
        $status = $? & 127 ? 128 + ($? & 127) : $? >> 8;
        emit("$mark $job->{index} $status " . length($job->{got}{out}) . ' ' . length($job->{got}{err}) . "\n");
        emit($job->{got}{out}, $job->{got}{err});
    }
    else { emit("$mark $job->{index} $status 0 0\n") }
}

# Passes on complete frames of the relaying program as they arrive; frames of this program may go between them.
sub pass_on {
    my ($job) = @_;
    while ($job->{got}{out} =~ /\A\Q$mark\E \S+ \S+ (\d+) (\d+)\n/) {
        my $length = $+[0] + $1 + $2;
        last if (length($job->{got}{out}) < $length);
        emit(substr($job->{got}{out}, 0, $length, ''));
    }
}

sub emit {
    for my $bytes (@_) {
        my $sent = 0;
        while ($sent < length($bytes)) {
            my $count = syswrite(STDOUT, $bytes, length($bytes) - $sent, $sent);
            die("write: $!") if (!defined($count));
            $sent += $count;
        }
    }
}
