FROM python:3.13.9-slim-bookworm

# The log appears at once, and nothing is written beside the code, which may be read-only.
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# A fixed number, so that a volume's owner stays the same from image to image.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin course \
    && install --directory --owner=course --group=course /data

WORKDIR /app
COPY requirements.txt requirements-servers.txt ./
RUN pip install --root-user-action=ignore --requirement requirements.txt --requirement requirements-servers.txt
COPY *.py deploy/health.py ./
COPY docs ./docs
COPY migrations ./migrations
RUN python -m compileall -q .

USER 10001:10001
# Temporary files go to the volume, since the rest may be read-only.
ENV HOST=0.0.0.0 PORT=5000 DATABASE_URL=sqlite:////data/courses.db TMPDIR=/data
VOLUME /data
EXPOSE 5000
HEALTHCHECK --interval=30s --timeout=5s --start-period=5s CMD ["python", "health.py"]
CMD ["python", "course_api.py"]
